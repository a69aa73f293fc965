"""How long DICOM takes: de-identification, headers, PNG and NIfTI, against the tools that people use.

    python benchmarks/dicom.py [--files N] [--rounds N]

The input is one CT series of 512 x 512 slices of 0.5 MB, made here from a file that ships with pydicom: a round phantom with
some structure and noise. NIfTI is written without compression. Every command runs as a whole process, start-up included. In
each round all of them run once, one after the other, and each is compared with the named peer in the same round; the median
over the rounds counts. Files lie in a RAM-backed folder. smp syncs every file that it writes, and names it when it is
complete; the others do not.

gdcmanon comes with gdcm (Debian package libgdcm-tools); dcm2niix is the one that the extra `medical` installs; dicognito is run
by the Python that the variable DICOGNITO_PYTHON names, if it is set. Both de-identify in one process, and smp in two.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from whole_process import RAM_FOLDER, Step, machine, measure_step, run

RESULTS = Path(__file__).parent / "results" / "dicom.json"
SMP = [sys.executable, "-m", "secure_media_processor"]
# Step → (peer, how many times as long as that smp may take).
BARS = {
    "de-identify": {"gdcmanon": 1 / 1.5, "dicognito": 1 / 3},
    "headers": {"pydicom": 1 / 0.9},
    "PNG": {"pydicom and Pillow": 1.0},
    "NIfTI": {"dcm2niix": 1.15},
}

MAKE = """
import sys
from pathlib import Path
import numpy as np
from pydicom import dcmread
from pydicom.data import get_testdata_file
folder, count = Path(sys.argv[1]), int(sys.argv[2])
dataset = dcmread(get_testdata_file("CT_small.dcm"))
del dataset[0xFFFCFFFC]
dataset.Rows = dataset.Columns = 512
dataset.PixelSpacing, dataset.SliceThickness = [0.7, 0.7], 1.0
dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
generator = np.random.default_rng(1)
x, y = np.meshgrid(np.arange(512.0), np.arange(512.0))
phantom = (np.hypot(x - 256, y - 256) < 200) * (1000 + 80 * np.sin(x / 20) + 80 * np.cos(y / 35))
series = dataset.SeriesInstanceUID
for number in range(count):
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"{series}.{number + 1}"
    dataset.InstanceNumber, dataset.ImagePositionPatient = number + 1, [-179.0, -179.0, float(number)]
    dataset.SliceLocation = float(number)
    dataset.PixelData = (phantom + generator.normal(0, 20, phantom.shape)).clip(0, 4000).astype(np.int16).tobytes()
    dataset.save_as(folder / f"slice-{number:05}.dcm")
"""
DICOGNITO = """
import sys
from pathlib import Path
import pydicom
from dicognito.anonymizer import Anonymizer
source, target = map(Path, sys.argv[1:])
target.mkdir()
anonymizer = Anonymizer()
for path in sorted(source.iterdir()):
    dataset = pydicom.dcmread(path)
    anonymizer.anonymize(dataset)
    dataset.save_as(target / path.name)
"""
PYDICOM_HEADERS = """
import sys
from pathlib import Path
import pydicom
tags = ["SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "Modality", "InstanceNumber", "Rows",
    "Columns", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "PatientID", "SeriesDescription"]
for path in sorted(Path(sys.argv[1]).iterdir()):
    dataset = pydicom.dcmread(path, specific_tags=tags, stop_before_pixels=True)
    [dataset.get(tag) for tag in tags]
"""
OUR_HEADERS = """
import sys
from secure_media_processor.medical.dicom.reader import read_folder
from secure_media_processor.medical.dicom.series import group_into_series
[series] = group_into_series(read_folder(sys.argv[1]).instances)
assert series.stacks[0].regular
"""
PILLOW = """
import sys
from pathlib import Path
import numpy as np
from PIL import Image
import pydicom
from pydicom.pixels import apply_modality_lut, apply_voi_lut
source, target = map(Path, sys.argv[1:])
target.mkdir()
for path in sorted(source.iterdir()):
    dataset = pydicom.dcmread(path)
    values = apply_voi_lut(apply_modality_lut(dataset.pixel_array, dataset), dataset).astype(float)
    low, high = values.min(), values.max()
    Image.fromarray(((values - low) / ((high - low) or 1) * 255).astype(np.uint8)).save(target / f"{path.stem}.png")
"""


def steps(folder: Path, certificate: Path) -> list[Step]:
    """Return what is to be timed on the series `series` in `folder`."""
    source, output = folder / "series", folder / "output"
    count = len(list(source.iterdir()))
    python = os.environ.get("DICOGNITO_PYTHON")

    def clear(_name: str) -> None:
        shutil.rmtree(output, ignore_errors=True)

    def written(_name: str) -> None:
        found = [path for path in output.rglob("*") if path.is_file()]
        if len(found) != count:
            raise RuntimeError(f"{len(found)} of {count} files were written")

    def volume(_name: str) -> None:
        size = max(path.stat().st_size for path in output.rglob("*.nii"))
        if size < count * 512 * 512 * 2:
            raise RuntimeError("the volume is too small")

    gdcmanon = ["gdcmanon", "-e", "-c", str(certificate), "-r", "-i", str(source), "-o", str(output)]
    dcm2niix = [str(Path(sys.executable).with_name("dcm2niix")), "-z", "n", "-b", "n", "-o", str(output), str(source)]
    png = [*SMP, "medical", "convert", str(source), str(output), "--format", "png", "--jobs", "1"]
    return [
        Step(
            "de-identify",
            "gdcmanon",
            {
                "gdcmanon": gdcmanon,
                "smp": [*SMP, "medical", "anonymize", str(source), str(output), "--processes", "2"],
                **({"dicognito": [python, "-c", DICOGNITO, str(source), str(output)]} if python else {}),
            },
            clear,
            written,
        ),
        Step(
            "headers",
            "pydicom",
            {
                "pydicom": [sys.executable, "-c", PYDICOM_HEADERS, str(source)],
                "smp": [sys.executable, "-c", OUR_HEADERS, str(source)],
            },
            lambda _name: None,
            lambda _name: None,
        ),
        Step(
            "PNG",
            "pydicom and Pillow",
            {"pydicom and Pillow": [sys.executable, "-c", PILLOW, str(source), str(output)], "smp": png},
            clear,
            written,
        ),
        Step(
            "NIfTI",
            "dcm2niix",
            {
                "dcm2niix": ["sh", "-c", 'mkdir "$1" && shift && exec "$@"', "sh", str(output), *dcm2niix],
                "smp": [*SMP, "medical", "convert", str(source), str(output), "--format", "nifti", "--no-gzip"],
            },
            clear,
            volume,
        ),
    ]


def measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Run everything and return the figures."""
    home = folder / "home"
    for made in (home, folder / "series"):
        made.mkdir()
    environment = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8", "HOME": str(home)}
    run([sys.executable, "-c", MAKE, str(folder / "series"), str(options.files)], folder, environment)
    run([*SMP, "key", "generate"], folder, environment)
    certificate = folder / "certificate.pem"
    key = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=benchmark", "-keyout", os.devnull]
    run([*key, "-out", str(certificate)], folder, environment)
    figures = {}
    for step in steps(folder, certificate):
        figures[step.name] = measure_step(step, options.rounds, set(step.commands), folder, environment)
        for row in figures[step.name].values():
            row["files_per_s"] = round(options.files / row["wall_s"], 1)
    return {
        "files": options.files,
        "rounds": options.rounds,
        **machine(),
        "pydicom": version("pydicom"),
        "dcm2niix": version("dcm2niix"),
        "gdcm": gdcm_version(),
        "figures": figures,
        "bars": bars(figures),
    }


def gdcm_version() -> str:
    """Return what gdcmanon says of itself."""
    program = shutil.which("gdcmanon") or "gdcmanon"
    return subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout.split("\n")[0]


def bars(figures: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what was wanted of smp, what was measured, and whether that is enough."""
    found = []
    for step, peers in BARS.items():
        for peer, limit in peers.items():
            if peer in figures[step]:
                ratio = round(figures[step]["smp"]["wall_s"] / figures[step][peer]["wall_s"], 3)
                bar = f"{step}: wall, in multiples of {peer}'s"
                found.append({"bar": bar, "limit": round(limit, 3), "measured": ratio, "met": ratio <= limit})
    return found


def main() -> None:
    """Measure, print tables and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=1000, help="slices in the series (default 1000)")
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds (default 5)")
    parser.add_argument("--no-save", action="store_true", help="leave benchmarks/results as it is")
    options = parser.parse_args()
    if shutil.which("gdcmanon") is None:
        sys.exit("gdcmanon is not installed: it is in the Debian package libgdcm-tools")
    with tempfile.TemporaryDirectory(dir=RAM_FOLDER if RAM_FOLDER.is_dir() else None, prefix="smp-bench-") as name:
        results = measure(Path(name), options)
    for step, rows in results["figures"].items():
        print(f"\n{step:20} {'wall s':>8} {'CPU s':>8} {'MiB':>7} {'files/s':>8}")
        for name, row in rows.items():
            print(f"{name:20} {row['wall_s']:8.2f} {row['cpu_s']:8.2f} {row['rss_mib']:7.0f} {row['files_per_s']:8.0f}")
    print()
    for bar in results["bars"]:
        print(f"{'met' if bar['met'] else 'MISSED':7} {bar['bar']}: {bar['measured']:.2f}, at most {bar['limit']:.2f} wanted")
    if not options.no_save:
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
