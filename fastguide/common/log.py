"""The library's log: one record for each run, capture and warm-up, of the logger "fastguide".

No handler is installed and nothing is shown until the user asks for it (docs/serving.md). What a
record says is known on the host: none waits for the device.
"""

from __future__ import annotations

import logging
from typing import Any

logger = logging.getLogger("fastguide")
logger.addHandler(logging.NullHandler())


def logging_on() -> bool:
    """Whether records are wanted; ask before computing what they say."""
    return logger.isEnabledFor(logging.INFO)


def log(event: str, **fields: Any) -> None:
    """A record whose `event` and `fields` are attributes of it."""
    text = " ".join(f"{name}={value}" for name, value in fields.items())
    logger.info("%s %s", event, text, extra={"event": event, **fields})
