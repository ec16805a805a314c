"""The reference's UNet on this device: `python benchmarks/parity_device.py --unet-set ../shared/reference/golden/A`.

`benchmarks/parity.py` proves the numbers in float32 on the CPU. This one says how far from them a device and the types
that it computes in are: float32 must hold the same limit there (in full precision, no TF32); float16 and bfloat16, in
which large models run on GPUs, are told for knowledge. Exit code 0 only when float32 holds.
"""

from __future__ import annotations

import argparse
import sys
from datetime import UTC, datetime
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from backend import device as devices
from backend.protocol import write_json
from benchmarks.parity_unet import UNET_LIMIT, UNetSet, forward, in_type, relative

TYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@torch.no_grad()
def errors(folder: Path, device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """Relative L2 of the whole network in both settings against the reference's float32."""
    data = UNetSet.open(folder)
    inputs = data.tensors("forward.safetensors")
    moved = {name: tensor.to(device) for name, tensor in in_type(inputs, dtype).items()}
    found = {}
    for name, zero in (("output", False), ("output_i2v_cond_time_zero", True)):
        network = data.network(i2v_cond_time_zero=zero, dtype=dtype).to(device)
        got = forward(network, moved, data.config["num_views"]).cpu()
        found[name] = relative(got, inputs[name])
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--unet-set", type=Path, required=True, metavar="DIR", help="in the format of golden/A")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--report", type=Path, metavar="FILE.json")
    options = parser.parse_args()
    device = devices.pick(options.device)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    about = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "device": devices.name(device)}
    found, holds = {}, False
    for name, dtype in TYPES.items():
        found[name] = errors(options.unet_set, device, dtype)
        print(name, "  ".join(f"{part} {error:.2g}" for part, error in found[name].items()), flush=True)
        holds = all(error <= UNET_LIMIT for error in found["float32"].values())
        if options.report:  # each time: half precision takes minutes on some processors
            limit = {"limit": UNET_LIMIT, "holds": holds}
            write_json(options.report, {**about, "versions": devices.versions(), **limit, "relative_l2": found})
    print(f"float32 {'holds' if holds else 'FAILS'}: at most {UNET_LIMIT:g} is allowed")
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
