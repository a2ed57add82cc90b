// Package shm gives named shared memory the ways of a file.
//
// A block is a named piece of memory that every process of the machine can
// attach to. A [Segment] is one process's attachment: it reads, writes and
// seeks as an [os.File] does, but what it moves are bytes in memory that all
// attached processes see at once.
//
//	seg, err := shm.Create("frames", 16<<20)
//	if err != nil {
//		return err
//	}
//	defer seg.Close()
//	_, err = io.Copy(seg, file)
//
// Another process then reads what is there:
//
//	seg, err := shm.Open("frames", shm.ReadOnly())
//	if err != nil {
//		return err
//	}
//	defer seg.Close()
//	_, err = io.Copy(os.Stdout, seg)
//
// # Lifetime
//
// A block exists exactly as long as somebody is attached to it. The process
// that closes the last Segment of it takes its name away. A process that ends
// without Close, even by kill -9, is no longer attached either: the kernel
// vouches for that. If it was the last, the block stays behind dead until the
// next [Create], [Open] or [OpenOrCreate] of that name, or a [Reap], by any
// process: Open finds that it does not exist, Create makes a new one.
//
// A block created [Persistent] stays until [Unlink]. So does a [Headerless]
// one, the raw kind that other programs make, of which nobody keeps count.
//
// A Segment dropped without Close is detached when the garbage collector finds
// it, and reported; see [OnLeak]. If Bytes had been called, it stays attached
// until the process ends, because slices may be left that the collector does
// not know of. Neither is a substitute for Close.
//
// # Size
//
// A block has a fixed Cap, the number of bytes it can hold, and a Size, the
// number of bytes it holds, which all processes see change. A new block has
// Size == Cap and is zero. Reading ends at Size. Writing beyond Size raises it,
// up to Cap. So a block can be filled from a stream and read by somebody who
// finds [io.EOF] behind the last byte:
//
//	seg.Truncate(0)
//	io.Copy(seg, stream)
//
// # Concurrency
//
// All functions and methods are safe for concurrent use. Read, Write, Seek and
// the methods that build on them share one offset; ReadAt and WriteAt have none.
// Several readers at once, such as HTTP handlers, each need an offset of their
// own: give each an [io.NewSectionReader] of the Segment.
// Close takes effect at once while other calls are in progress. They finish, or
// return [fs.ErrClosed] if it overtakes them; a write may then have stored some
// of its bytes. Calls that begin later return fs.ErrClosed.
//
// Bytes are copied without any lock. A reader that looks while another
// goroutine or process writes the same range can see part of the old and part
// of the new. Size is raised after the bytes below it are in place, so a reader
// that stays below Size sees complete what was appended.
//
// # Names
//
// A name is 1 to 255 bytes (30 on darwin, 240 on Windows) of A-Z, a-z, 0-9, '.', '_' and '-',
// and does not begin with a dot. One leading slash, as users of shm_open write
// it, is dropped. All else is [fs.ErrInvalid].
//
// # Platforms
//
//   - On Linux a block is a file on the tmpfs at /dev/shm, held by open file
//     description locks; see fcntl(2). Elsewhere than on a tmpfs a block with a
//     header is [errors.ErrUnsupported], as it is on processors without 64-bit
//     atomic operations: linux/mips, linux/mipsle, and linux/arm with GOARM below 7.
//   - On darwin a block is a POSIX shared memory object, with a lock page in its
//     first 16 KiB that names the processes attached. Memory is not reserved: to
//     Create, [Sparse] makes no difference. Who may read a block but not write to
//     it cannot enter there, so the block does not wait for such a [ReadOnly]
//     Segment, whose memory stays valid all the same. A process keeps its place
//     across exec. [List] and [Reap] are [errors.ErrUnsupported], so that a dead
//     block goes when somebody next looks for its name. See docs/darwin.md.
//   - On Windows a block is a section (file mapping) that the page file backs,
//     with a name in the namespace of the session: services and the sessions of
//     different users do not see each other's. The system ends it with its last
//     attachment, even if that was killed, so there are no [Persistent] and no
//     dead blocks, and a [Headerless] one is no exception. Up to eight blocks of
//     one name can be in use at a time, all but one of them unlinked.
//   - On other systems every function returns [errors.ErrUnsupported].
package shm
