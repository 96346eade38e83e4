"""Import before ps3, in the reference's environment: lets torchvision import without its compiled operators.

torchvision registers shapes for those operators when it is imported, which fails where they are absent. PS3 and timm use
only its transforms, so the registrations are replaced by an empty module.
"""
import sys
import types

NAME = "torchvision._meta_registrations"

if "torchvision" not in sys.modules:
    sys.modules.setdefault(NAME, types.ModuleType(NAME))
    import torchvision  # noqa: F401
