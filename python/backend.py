"""The build backend of shmkit for pip: PEP 517 and PEP 660, with nothing to download.

A wheel of pure Python is a zip file of the package and three files about it.
"""

import base64
import hashlib
import io
import pathlib
import re
import tarfile
import zipfile
from typing import Any, Dict, List, Optional

HERE = pathlib.Path(__file__).parent
PACKAGE = HERE / "shmkit"
VERSION = re.findall(r'^__version__ = "(.*)"$', (PACKAGE / "__init__.py").read_text(), re.M)[0]
STEM = f"shmkit-{VERSION}"

METADATA = f"""\
Metadata-Version: 2.1
Name: shmkit
Version: {VERSION}
Summary: Named shared memory that exists as long as a process is attached to it, shared with Go
License: MIT
Project-URL: Source, https://github.com/shmkit/shm
Classifier: Operating System :: POSIX :: Linux
Classifier: Programming Language :: Python :: 3
Classifier: Typing :: Typed
Requires-Python: >=3.8
Description-Content-Type: text/markdown

{(HERE / "README.md").read_text(encoding="utf-8")}"""

WHEEL = """\
Wheel-Version: 1.0
Generator: shmkit
Root-Is-Purelib: true
Tag: py3-none-any
"""


def _sources() -> List[pathlib.Path]:
    return [*sorted(PACKAGE.glob("*.py")), PACKAGE / "py.typed"]


def _wheel(directory: str, files: Dict[str, bytes]) -> str:
    info = f"{STEM}.dist-info"
    files = {**files, f"{info}/METADATA": METADATA.encode(), f"{info}/WHEEL": WHEEL.encode()}
    record = ""
    for name, content in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
        record += f"{name},sha256={digest},{len(content)}\n"
    files[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    wheel = f"{STEM}-py3-none-any.whl"
    with zipfile.ZipFile(pathlib.Path(directory, wheel), "w", zipfile.ZIP_DEFLATED) as z:
        for name, content in files.items():
            entry = zipfile.ZipInfo(name)  # which has the same time in every wheel
            entry.external_attr = 0o644 << 16
            z.writestr(entry, content, zipfile.ZIP_DEFLATED)
    return wheel


def build_wheel(wheel_directory: str, config_settings: Any = None, metadata_directory: Optional[str] = None) -> str:
    return _wheel(wheel_directory, {f"shmkit/{f.name}": f.read_bytes() for f in _sources()})


def build_editable(wheel_directory: str, config_settings: Any = None, metadata_directory: Optional[str] = None) -> str:
    return _wheel(wheel_directory, {"shmkit.pth": f"{HERE}\n".encode()})


def build_sdist(sdist_directory: str, config_settings: Any = None) -> str:
    name = f"{STEM}.tar.gz"
    with tarfile.open(pathlib.Path(sdist_directory, name), "w:gz", format=tarfile.PAX_FORMAT) as t:
        for path in [HERE / "README.md", HERE / "backend.py", HERE / "pyproject.toml", *_sources()]:
            t.add(path, f"{STEM}/{path.relative_to(HERE)}")
        info = tarfile.TarInfo(f"{STEM}/PKG-INFO")
        info.size = len(METADATA.encode())
        t.addfile(info, io.BytesIO(METADATA.encode()))
    return name
