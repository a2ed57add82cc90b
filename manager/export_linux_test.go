package manager

// AcceptRights makes the kernel one before Linux 6.16 to the servers of this
// process, which cannot have it refuse descriptors.
func AcceptRights() { acceptRights = true }

// CutShort is how a server closes what can linger.
var CutShort = cutShort
