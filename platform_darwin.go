package shm

// maxName: shm_open(2) of darwin takes 31 bytes with the leading slash
// (PSHMNAMLEN, xnu bsd/sys/posix_shm.h).
const maxName = 30
