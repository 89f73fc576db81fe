"""Amounts as people read them: bytes and seconds in, short texts out."""


def size_text(size: float) -> str:
    """``size`` bytes in powers of 1000, as disks are sold: ``98 MB``, ``1.3 GB``."""
    for unit in ("B", "kB", "MB"):
        if size < 999.5:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def age_text(seconds: float) -> str:
    """``3 hours ago``, in the largest unit of which at least one has passed."""
    units = (("year", 31_536_000), ("month", 2_592_000), ("week", 604_800), ("day", 86_400))
    for unit, length in (*units, ("hour", 3600), ("minute", 60), ("second", 1)):
        if (count := int(seconds // length)) >= 1:
            return f"{count} {unit}{'s' if count > 1 else ''} ago"
    return "just now"
