"""Programs that know nothing of hgrn: they run in a process of their own, without a network."""

import os
import subprocess
import sys
from pathlib import Path

import hgrn

_KNOWS_NOTHING = (
    'import sys; assert not any(name.split(".")[0] == "hgrn" for name in sys.modules)\n'
)


def environment(home: Path) -> dict[str, str]:
    """Where this hgrn is installed for everyone, and the caches of Hugging Face lie in `home`."""
    installed = os.pathsep.join(
        [str(Path(hgrn.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    )
    offline = dict.fromkeys(("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"), "1")
    return {
        **os.environ,
        **offline,
        "HF_HOME": str(home),
        "PYTHONPATH": installed,
        "OMP_NUM_THREADS": "1",
    }


def run(program: str, *arguments, home: Path) -> str:
    """What the program printed; its errors fail the test."""
    command = [sys.executable, "-c", _KNOWS_NOTHING + program, *map(str, arguments)]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment(home), check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
