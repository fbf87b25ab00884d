"""One measurement in a fresh process: ``python -m tools.bench.measure REQUEST``.

The request is a JSON object (Request below), the answer one line of JSON on stdout.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pwd
import sys

from . import programs
from .peers import PEERS, Peer
from .works import CURVES, WORKS, Setting, Work


@dataclasses.dataclass(frozen=True)
class Request:
    work: str
    peer: str
    count: int
    size: int
    #: Where the compiled programs are.
    directory: str
    #: Whom to become first.
    user: str | None = None

    def find_work(self) -> Work:
        return WORKS[self.work] if self.work in WORKS else CURVES[self.work].work

    def setting(self) -> Setting:
        return Setting(self.peer, programs.Programs(self.directory), self.count, self.size)


def become(user: str) -> None:
    import ctypes  # not for those who stay who they are: it costs memory

    entry = pwd.getpwnam(user)
    os.setgroups([])
    os.setgid(entry.pw_gid)
    os.setuid(entry.pw_uid)
    # A change of identity takes /proc/self/fd away; PR_SET_DUMPABLE gives it back.
    ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)


def warm_up(peer: Peer, setting: Setting) -> None:
    """A first use imports, probes and opens things. That is measured by `import`, and is
    not possible any more as a user who may not read where Python is."""

    async def main() -> None:
        await peer.call([setting.programs.true])
        await peer.exchange([setting.programs.cat], b"hello")
        await peer.silent([setting.programs.true])
        await peer.capture([setting.programs.cat], b"hello")
        await peer.sleep(0)

    peer.run(main)


def main() -> None:
    request = Request(**json.loads(sys.argv[1]))
    setting = request.setting()
    peer = PEERS[request.peer].make()
    warm_up(peer, setting)
    if request.user is not None:
        become(request.user)
    json.dump(request.find_work().measure(peer, setting), sys.stdout)


if __name__ == "__main__":
    main()
