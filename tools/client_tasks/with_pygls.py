# mypy: ignore-errors
"""A language server and a client, joined by the server's stdio."""

import asyncio
import sys

from lsprotocol import types
from pygls.lsp.client import LanguageClient
from pygls.lsp.server import LanguageServer


def serve() -> None:
    server = LanguageServer("words", "v1")

    @server.feature(types.TEXT_DOCUMENT_COMPLETION)
    def completions(params):
        document = server.workspace.get_text_document(params.text_document.uri)
        return [types.CompletionItem(label=word) for word in sorted(set(document.source.split()))]

    server.start_io()


async def main() -> None:
    client = LanguageClient("task", "v1")
    await client.start_io(sys.executable, __file__, "serve")
    capabilities = types.ClientCapabilities()
    answer = await client.initialize_async(types.InitializeParams(capabilities=capabilities))
    print(answer.server_info.name)
    client.initialized(types.InitializedParams())
    uri = "file:///words.txt"
    text = "c a b " + "x" * 300_000
    client.text_document_did_open(
        types.DidOpenTextDocumentParams(
            types.TextDocumentItem(uri=uri, language_id="text", version=1, text=text)
        )
    )
    items = await client.text_document_completion_async(
        types.CompletionParams(types.TextDocumentIdentifier(uri), types.Position(0, 0))
    )
    print([len(item.label) for item in items])
    await client.shutdown_async(None)
    client.exit(None)
    await client.stop()
    print("exit code", client._server.returncode)


if sys.argv[1:] == ["serve"]:
    serve()
else:
    asyncio.run(main())
