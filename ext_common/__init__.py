"""What two or more of the four packages share.

Importing any of our packages imports this one first, and this one repairs detectron2 0.6 for the
current Python stack (:mod:`ext_common.compat`) before detectron2 itself is imported.
"""

from ext_common import compat as _compat

_compat.apply()
