"""The committed stubs equal those made from the proto, and the proto has a comment for each definition."""

import itertools
import re
import subprocess
import sys

from reward_server.pb import reward_pb2 as pb
from reward_server.scoring.spans import UnscorableError
from tests.processes import ROOT
from winnow.errors import ChatError, ControlTokenError

PROTO = ROOT / "proto" / "winnow" / "v1" / "reward.proto"


def test_regenerating_the_stubs_changes_nothing() -> None:
    command = [sys.executable, "proto/generate.py", "--check"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert (result.returncode, result.stderr) == (0, "")


def test_every_definition_in_the_proto_has_a_comment() -> None:
    lines = PROTO.read_text().splitlines()
    defined = re.compile(r"^(service|message|enum|  rpc) (?!GetServerInfoRequest)")
    bare = [line for before, line in itertools.pairwise(lines) if defined.match(line) and "//" not in before]
    assert bare == []


def test_every_status_of_the_code_is_in_the_proto() -> None:
    sources = [path.read_text() for path in (ROOT / "reward_server").rglob("*.py")]
    raised = re.findall(rf'(?:{UnscorableError.__name__}|CompletionResult)\(\s*"(\w+)"', "\n".join(sources))
    raised += [error.status for error in (ChatError, ControlTokenError)]
    assert {f"STATUS_{name.upper()}" for name in raised} == set(pb.Status.keys()) - {"STATUS_UNSPECIFIED", "STATUS_OK"}
