"""The protocol, found both inside an installed extension and in a plain checkout.

Inside the extension this package is `bl_ext.<repository>.animate3d.animate3d_addon` and the backend lies beside it;
in a checkout (tests, `animate_batch.py`) both are top-level packages.
"""

if "." in __package__:
    from ..backend import protocol
else:
    from backend import protocol

__all__ = ["protocol"]
