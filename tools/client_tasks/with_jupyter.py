# mypy: ignore-errors
"""A kernel, whose %%bash cells are asyncio subprocesses of the kernel's process.

jupyter_client starts the kernel by Popen; so the kernel itself is run as we are.
"""

import asyncio
import json
import os

from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec

CELLS = (
    "6 * 7",
    "%%bash\necho out; echo err >&2",
    "%%script --out captured sh\nseq 3",
    "captured",
    "%%script --bg --out later sh\necho 'from the background'",
    "(await later.read()) if hasattr(later, 'read') else later",
    "%%bash\nexit 3",
    "%%script cat\nthe cell is its stdin",
)


def show(message) -> None:
    content = message["content"]
    if message["msg_type"] == "stream":
        print(content["name"], content["text"].rstrip())
    elif message["msg_type"] == "execute_result":
        print(content["data"]["text/plain"])
    elif message["msg_type"] == "error":
        print(content["ename"])


async def main() -> None:
    manager = AsyncKernelManager()
    launcher = json.loads(os.environ["CLIENT_PYTHON"])
    manager._kernel_spec = KernelSpec(
        argv=[*launcher, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        display_name="task",
        language="python",
    )
    await manager.start_kernel(stderr=-3)
    client = manager.client()
    client.start_channels()
    await client.wait_for_ready(timeout=120)
    for cell in CELLS:
        answer = await client.execute_interactive(cell, timeout=120, output_hook=show)
        print(answer["content"]["status"])
    client.stop_channels()
    await manager.shutdown_kernel()
    print("alive:", await manager.is_alive())


asyncio.run(main())
