"""What stands on a backend's child for asyncio's API: transports, streams, Process."""
