"""`transformers serve` on a saved folder, by the documented command.

It answers completions, at once and streamed.
"""

import json
import re
import shlex
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

from hgrn.data.tokenizer import INCOMPLETE
from tests.conftest import ROOT
from tests.tools import strangers
from tests.tools.conftest import SENTENCE

for package in ("openai", "fastapi", "uvicorn", "starlette", "accelerate"):
    pytest.importorskip(
        package, reason=f"{package} is not installed (pip install -c constraints.txt '.[serve]')"
    )
pytestmark = pytest.mark.slow  # it waits for a server that loads all of transformers

PROMPT = SENTENCE[:6]
SECONDS = 180  # until the server answers


@pytest.fixture(scope="module")
def server(folder, tmp_path_factory):
    """The address of a server of the folder."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    home = tmp_path_factory.mktemp("home")
    (line,) = re.findall(
        r"^(python .* serve FOLDER .*)$",
        (ROOT / "docs" / "hugging_face.md").read_text(),
        re.MULTILINE,
    )
    _, *arguments = shlex.split(line.replace("FOLDER", str(folder)))
    command = [sys.executable, *arguments, "--host", "127.0.0.1", "--port", str(port)]
    address = f"http://127.0.0.1:{port}"
    log = home / "log"
    with log.open("w") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, env=strangers.environment(home)
        )
    try:
        give_up = time.monotonic() + SECONDS
        while not healthy(address):
            assert process.poll() is None and time.monotonic() < give_up, log.read_text()
            time.sleep(0.2)
        yield address
    finally:
        process.terminate()
        process.wait(30)


def healthy(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/health", timeout=5) as answer:
            return json.load(answer) == {"status": "ok"}
    except urllib.error.URLError:
        return False


def post(address: str, **body) -> bytes:
    request = urllib.request.Request(
        f"{address}/v1/completions",
        json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return answer.read()


def test_a_completion(server, folder):
    new = len(SENTENCE.encode()) - len(PROMPT.encode())
    answer = json.loads(
        post(server, model=str(folder), prompt=PROMPT, max_tokens=new, temperature=0)
    )
    assert answer["choices"][0]["text"] == SENTENCE[len(PROMPT) :]
    assert (
        answer["usage"]["completion_tokens"] == new
        and answer["choices"][0]["finish_reason"] == "length"
    )


def test_a_streamed_completion_comes_in_whole_characters(server, folder):
    new = len(SENTENCE.encode()) - len(PROMPT.encode())
    events = (
        post(server, model=str(folder), prompt=PROMPT, max_tokens=new, temperature=0, stream=True)
        .decode()
        .split("\n\n")
    )
    pieces = [
        json.loads(event.removeprefix("data: "))["choices"][0]["text"] for event in events if event
    ]
    assert "".join(pieces) == SENTENCE[len(PROMPT) :] and len(pieces) > 10
    assert not any(INCOMPLETE in piece for piece in pieces)
