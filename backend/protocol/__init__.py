"""What Blender and the backend agree on: the job folder, the messages, the version.

The one package that both sides import, so it needs the standard library and numpy only. Everything in a job folder is
in subject space (`space`) except `Motion.offsets`, which are in world units and axes, so that they can be used without
it.
"""

from .errors import ERROR_KINDS, UserError
from .messages import decode_message, encode_message
from .results import Motion, Report, Rig, Video
from .settings import (
    DEVICES,
    MAX_FRAMES,
    MAX_PROMPT,
    MEMORY_MODES,
    MIN_FRAMES,
    PRESETS,
    PROTOCOL_VERSION,
    SOLVERS,
    JobSettings,
    clean_prompt,
)
from .space import (
    CAMERA_DISTANCE,
    CAMERA_ELEVATION,
    CAMERA_FOVY,
    POSITION_CODE_RANGE,
    SUBJECT_RADIUS,
    UP_AXES,
    VIEW_AZIMUTHS,
    condition_cameras,
    orbit_c2w,
    position_code,
    subject_to_world,
    transform_points,
)
from .storage import JOB_ENTRIES, read_json, read_npz, write_json, write_npz
from .subject import SplatSource, Subject

__all__ = [
    "CAMERA_DISTANCE",
    "CAMERA_ELEVATION",
    "CAMERA_FOVY",
    "DEVICES",
    "ERROR_KINDS",
    "JOB_ENTRIES",
    "MAX_FRAMES",
    "MAX_PROMPT",
    "MEMORY_MODES",
    "MIN_FRAMES",
    "POSITION_CODE_RANGE",
    "PRESETS",
    "PROTOCOL_VERSION",
    "SOLVERS",
    "SUBJECT_RADIUS",
    "UP_AXES",
    "VIEW_AZIMUTHS",
    "JobSettings",
    "Motion",
    "Report",
    "Rig",
    "SplatSource",
    "Subject",
    "UserError",
    "Video",
    "clean_prompt",
    "condition_cameras",
    "decode_message",
    "encode_message",
    "orbit_c2w",
    "position_code",
    "read_json",
    "read_npz",
    "subject_to_world",
    "transform_points",
    "write_json",
    "write_npz",
]
