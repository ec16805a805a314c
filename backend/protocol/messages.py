"""What the two processes say to each other.

Lines of JSON, each an object with a "type". One job at a time.

    to the backend      check {settings}     are the weights and the device there? -> checked | error
                        run {job}            -> progress*, notice*, forming*, preview, then done | error
                        cancel {}            ends the running job with an error of the kind "cancelled"
                        memory {}            -> memory
                        quit {}              (and the end of stdin) ends the process
    from the backend    hello {protocol, device, device_name, free_memory_gb, versions, pid}   first, or error
                        checked {appearance}                  color | position: what the model animates
                        progress {job, stage, step, steps, memory_gb}
                            step 0 when a stage starts, step == steps when it is done; memory of both processes
                        notice {job, message}                 to tell the user; no failure
                        preview {job, path}                   a .gif of the generated video
                        forming {job, path}                   `video/forming.npz` shows it while it is sampled
                        done {job, report}
                        error {job, kind, message, hint, log}
                        memory {peak_gb}      both processes together, since it was last asked or a stage ended
"""

from __future__ import annotations

import json


def encode_message(message: str, /, **content: object) -> str:
    """One message of a type as one line of JSON, newline included."""
    return json.dumps({"type": message, **content}, ensure_ascii=True) + "\n"


def decode_message(line: str) -> dict | None:
    """The message in a line, or None where a library printed something that is no message."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return message if isinstance(message, dict) and isinstance(message.get("type"), str) else None
