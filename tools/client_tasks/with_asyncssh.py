# mypy: ignore-errors
"""A server that runs what it is asked to, reached through a ProxyCommand."""

import asyncio
import sys

import asyncssh

PROXY = """
import os, selectors, socket, sys
peer = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
ready = selectors.DefaultSelector()
ready.register(0, selectors.EVENT_READ)
ready.register(peer, selectors.EVENT_READ)
while True:
    for key, _ in ready.select():
        data = os.read(0, 65536) if key.fd == 0 else peer.recv(65536)
        if not data:
            sys.exit()
        if key.fd == 0:
            peer.sendall(data)
        else:
            while data:
                data = data[os.write(1, data):]
"""


async def serve(process) -> None:
    local = await asyncio.create_subprocess_shell(
        process.command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await local.communicate(await process.stdin.read())
    process.stdout.write(output)
    process.stderr.write(errors)
    process.exit(local.returncode)


class Server(asyncssh.SSHServer):
    def begin_auth(self, username):
        return False


async def main() -> None:
    key = asyncssh.generate_private_key("ssh-ed25519")
    server = await asyncssh.create_server(
        Server, "127.0.0.1", 0, server_host_keys=[key], process_factory=serve, encoding=None
    )
    port = server.get_port()
    connection = await asyncssh.connect(
        "127.0.0.1",
        port,
        username="somebody",
        known_hosts=None,
        client_keys=None,
        config=None,
        proxy_command=[sys.executable, "-c", PROXY, str(port)],
    )
    async with connection:
        result = await connection.run("cat; echo err >&2; exit 3", input="words")
        print(result.exit_status, repr(result.stdout), repr(result.stderr))
        result = await connection.run("cat", input=b"x" * 3_000_000, encoding=None)
        print(result.exit_status, len(result.stdout))
    await connection.wait_closed()
    server.close()
    await server.wait_closed()
    print("closed")


asyncio.run(main())
