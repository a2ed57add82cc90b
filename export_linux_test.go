package shm

// ParseMeminfo returns how much memory the content of /proc/meminfo says there is.
var ParseMeminfo = parseMeminfo
