"""Drives real servers through open_process(): a language server and an MCP server.

    python tools/servers.py --venv DIR

DIR gets a virtual environment with pinned versions of python-lsp-server and of mcp, if it has
not. Each server is spoken to, killed in the middle of its work, started again, and ended by
the end of its stdin; with each backend, on asyncio's loop and on uvloop. It prints what was
done, and fails with a traceback.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
import os
import signal
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ["python-lsp-server==1.14.0", "mcp==2.3.0", "uvloop==0.23.0", "cffi"]
BACKENDS = {
    "clone": {"AIOPROC_BACKEND": "native", "AIOPROC_STRATEGY": "clone"},
    "portable": {"AIOPROC_BACKEND": "native", "AIOPROC_STRATEGY": "portable"},
    "pure": {"AIOPROC_BACKEND": "pure"},
}
LOOPS = ("asyncio", "uvloop")
#: Seconds for one answer: the servers import much.
FUSE = 60
STOP = [("eof", FUSE), (signal.SIGTERM, 5)]


class LanguageServer:
    """Messages with a header."""

    command = (sys.executable, "-m", "pylsp")

    def __init__(self, process: Any) -> None:
        self.process = process
        self.number = 0

    def send(self, method: str, params: Any, **more: Any) -> None:
        message = {"jsonrpc": "2.0", "method": method, "params": params, **more}
        data = json.dumps(message).encode()
        self.process.stdin.write(b"Content-Length: %d\r\n\r\n%s" % (len(data), data))

    async def ask(self, method: str, params: Any) -> Any:
        self.number += 1
        self.send(method, params, id=self.number)
        while True:
            header = await self.process.read_until(b"\r\n\r\n", timeout=FUSE)
            fields = dict(line.split(b": ") for line in header.split(b"\r\n") if line)
            body = await self.process.stdout.readexactly(int(fields[b"Content-Length"]))
            answer = json.loads(body)
            if answer.get("id") == self.number:
                return answer["result"]

    async def begin(self) -> None:
        answer = await self.ask("initialize", {"processId": None, "capabilities": {}})
        assert answer["serverInfo"]["name"] == "pylsp", answer
        self.send("initialized", {})

    async def work(self) -> None:
        uri = "file:///program.py"
        text = "import os\nos.getc" + "\n# " + "x" * 200_000  # more than a pipe holds
        document = {"uri": uri, "languageId": "python", "version": 1, "text": text}
        self.send("textDocument/didOpen", {"textDocument": document})
        where = {"textDocument": {"uri": uri}, "position": {"line": 1, "character": 7}}
        items = (await self.ask("textDocument/completion", where))["items"]
        assert any(item["label"].startswith("getcwd") for item in items), items

    async def end(self) -> None:
        await self.ask("shutdown", None)
        self.send("exit", None)


class ToolServer:
    """Messages of one line."""

    command = (sys.executable, __file__, "serve")

    def __init__(self, process: Any) -> None:
        self.process = process
        self.number = 0

    def send(self, method: str, params: Any, **more: Any) -> None:
        message = {"jsonrpc": "2.0", "method": method, "params": params, **more}
        self.process.stdin.write(json.dumps(message).encode() + b"\n")

    async def ask(self, method: str, params: Any) -> Any:
        self.number += 1
        self.send(method, params, id=self.number)
        while True:
            answer = json.loads(await self.process.read_until(b"\n", timeout=FUSE))
            if answer.get("id") == self.number:
                return answer["result"]

    async def begin(self) -> None:
        client = {"name": "aioproc", "version": "0"}
        version = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": client}
        answer = await self.ask("initialize", version)
        assert answer["serverInfo"]["name"] == "letters", answer
        self.send("notifications/initialized", {})

    async def work(self) -> None:
        tools = (await self.ask("tools/list", {}))["tools"]
        assert [tool["name"] for tool in tools] == ["repeat"]
        for times in (1, 500_000):
            call = {"name": "repeat", "arguments": {"text": "ab", "times": times}}
            result = await self.ask("tools/call", call)
            assert result["content"][0]["text"] == "ab" * times

    async def end(self) -> None:
        pass  # the end of its stdin is its end


def serve() -> None:
    server = importlib.import_module("mcp.server.mcpserver").MCPServer("letters")

    @server.tool()  # type: ignore[untyped-decorator,unused-ignore]
    def repeat(text: str, times: int) -> str:
        return text * times

    server.run("stdio")


async def drive(kind: Any) -> None:
    import aioproc

    options: dict[str, Any] = {"stderr": aioproc.PIPE, "stop": STOP}
    async with aioproc.open_process(*kind.command, **options) as process:
        server = kind(process)
        await server.begin()
        await server.work()
        process.kill()
        try:
            await server.work()
        except (asyncio.IncompleteReadError, ConnectionError):
            assert process.returncode == -signal.SIGKILL
        else:
            raise AssertionError("it has been killed")
    # Another one; its log is read beside.
    async with aioproc.open_process(*kind.command, **options) as process:
        log = asyncio.ensure_future(process.stderr.read())
        server = kind(process)
        await server.begin()
        await server.work()
        await server.end()
    assert process.returncode == 0, (process.returncode, await log)
    await log


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--venv", type=Path, required=True, help="made if it is not there")
    folder = parser.parse_args().venv
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        install = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        subprocess.run([*install, *PACKAGES], check=True)
    for backend, variables in BACKENDS.items():
        for loop in LOOPS:
            for kind in ("LanguageServer", "ToolServer"):
                env = {**os.environ, **variables, "PYTHONPATH": str(ROOT)}
                subprocess.run([python, __file__, "drive", kind, loop], env=env, check=True)
                print(f"{kind}, {backend}, {loop}: spoken to, killed, started again, ended")


if sys.argv[1:] == ["serve"]:
    serve()
elif sys.argv[1:2] == ["drive"]:
    module = importlib.import_module(sys.argv[3])
    event_loop = module.new_event_loop()
    event_loop.run_until_complete(drive(globals()[sys.argv[2]]))
    event_loop.run_until_complete(event_loop.shutdown_asyncgens())
    event_loop.close()
elif __name__ == "__main__":
    main()
