"""Model packages: what a model is, what it wants, and its weights, without a line of code in them.

Raises MissingExtraError on import if numpy is not installed.
"""

from importlib.util import find_spec

from secure_media_processor.errors import MissingExtraError

if find_spec("numpy") is None:
    raise MissingExtraError("numpy is not installed", hint="pip install 'secure-media-processor[medical,ml]'")
