"""The connector that the architecture page shows passes the exam."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from secure_media_processor.cloud.connectors.base import CloudConnector
from secure_media_processor.cloud.testing import ConnectorConformance

PAGE = Path(__file__).parents[2] / "docs" / "architecture.md"


class TestDocumentedConnector(ConnectorConformance):
    @pytest.fixture
    def connector(self) -> CloudConnector:
        code = re.search(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
        assert code
        names: dict[str, type[CloudConnector]] = {}
        exec(code[1], names)  # noqa: S102 - our own page
        return names["MemoryConnector"]()
