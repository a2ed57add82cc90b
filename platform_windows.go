package shm

// maxName leaves room in MAX_PATH for the name space that an object lives in.
const maxName = 240
