"""What plays a library's functions on a device."""
