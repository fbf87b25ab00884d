# mypy: ignore-errors
"""A client and a server of the Model Context Protocol, joined by the server's stdio."""

import asyncio
import sys

from mcp import ClientSession, StdioServerParameters
from mcp.client.stdio import stdio_client


def serve() -> None:
    from mcp.server.mcpserver import MCPServer

    server = MCPServer("letters")

    @server.tool()
    def repeat(text: str, times: int) -> str:
        return text * times

    server.run("stdio")


async def main() -> None:
    parameters = StdioServerParameters(command=sys.executable, args=[__file__, "serve"])
    async with stdio_client(parameters) as streams, ClientSession(*streams) as session:
        await session.initialize()
        print([tool.name for tool in (await session.list_tools()).tools])
        for times in (1, 1000, 1_000_000):  # the last far beyond what a pipe holds
            result = await session.call_tool("repeat", {"text": "ab", "times": times})
            print(len(result.content[0].text))
    print("closed")


if sys.argv[1:] == ["serve"]:
    serve()
else:
    asyncio.run(main())
