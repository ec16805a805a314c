"""What both sides know, found both inside an installed extension and in a plain checkout: the protocol, the prompts.

Inside the extension this package is `bl_ext.<repository>.animate3d.animate3d_addon` and the backend lies beside it;
in a checkout (tests, `animate_batch.py`) both are top-level packages.
"""

if "." in __package__:
    from ..backend import protocol
    from ..backend.prompts import understand
else:
    from backend import protocol
    from backend.prompts import understand

__all__ = ["protocol", "understand"]
