// Package shm provides named shared memory with a file-like API.
//
// One process creates a block of memory under a name, and other processes of the
// same machine open it by that name. Each gets a [Segment], which has the methods
// of an [os.File]. The bytes that it reads and writes are in memory that all these
// processes share.
//
//	seg, err := shm.Create("frames", 16<<20)
//	if err != nil {
//		return err
//	}
//	defer seg.Close()
//	_, err = io.Copy(seg, file)
//
// Another process reads the block:
//
//	seg, err := shm.Open("frames", shm.ReadOnly())
//	if err != nil {
//		return err
//	}
//	defer seg.Close()
//	_, err = io.Copy(os.Stdout, seg)
//
// # Terms
//
//   - A block is a piece of shared memory. Most blocks have a name; [Anonymous]
//     blocks have none.
//   - A [Segment] is one attachment of one process to a block. Create, Open,
//     OpenOrCreate, Anonymous and FromFile attach; Close detaches.
//   - To unlink a block is to remove its name. Its memory is released when its last
//     attachment ends.
//   - A block is stale if all its attachments have ended and none has unlinked it, in
//     most cases because its processes were killed. Nothing can attach to a stale
//     block. [Persistent] and Headerless blocks are never stale.
//   - The header is the first page of a block's memory, before its data. It holds
//     the Size of the block and what this package has to know of it. [Headerless]
//     blocks, those of other programs, have none.
//   - The mutex of a block is a lock that a process holds for some microseconds
//     while it unlinks; on darwin and Windows also while it attaches or detaches. If
//     a process is stopped while it holds the mutex, other processes wait for two
//     seconds at most; see [ErrBusy].
//
// # Lifetime
//
// A block exists as long as at least one Segment is attached to it. The last Close,
// in whatever process, unlinks it. A process that exits without calling Close, even
// one killed by SIGKILL, no longer counts as attached: the kernel releases its
// locks. If it was the last one, the block is stale, and the next [Create], [Open],
// [OpenOrCreate] of its name, or [Reap], removes it, in any process that is permitted
// to. Open then returns [fs.ErrNotExist], and Create creates a new block.
//
// A block created with [Persistent], or kept by [Segment.Keep], stays until [Unlink]. So does a [Headerless]
// block, because nothing shows which processes are attached to it.
//
// A Segment that is dropped without Close is detached when the garbage collector
// finds it, and reported; see [OnLeak]. If Bytes has been called, the Segment stays
// attached until the process ends, because the collector cannot tell whether such a
// slice is still in use. Do not rely on either in place of Close.
//
// # Size
//
// Cap is the number of bytes that a block can hold; it never changes. Size is the
// number of bytes that it holds; all processes see it change. A new block has
// Size == Cap, and all its bytes are zero, or is [Empty]. Reads end at Size. Writes
// beyond Size raise it, up to Cap. So a block can be filled from a stream, and its
// readers get [io.EOF] after the last byte:
//
//	seg, err := shm.Create("frames", 16<<20, shm.Empty())
//	io.Copy(seg, stream)
//
// # Waiting
//
// A Segment returns io.EOF at Size; a [Follower] waits there for more, until the block is
// finished ([Segment.Finish]) or no process is left that could write to it. [OpenWait]
// waits for a block, [Segment.Wait] for any condition, and [Segment.Lock] for a lock that
// the kernel takes from a process that ends.
//
// What changes Size wakes those that wait. Stores to the slice of Bytes or View do not:
// call [Segment.Notify] after them. The page docs/waiting.md has five programs.
//
// # Concurrency
//
// All functions and methods are safe for concurrent use. Read, Write, Seek and the
// methods that build on them share one offset; ReadAt and WriteAt do not use it.
// Concurrent readers, such as HTTP handlers, each need an offset of their own: give
// each an [io.NewSectionReader] of the Segment.
//
// Close does not wait for calls in progress. Such a call either completes or
// returns [fs.ErrClosed]; a write that returns it may have stored some of its bytes.
// Calls that begin after Close return fs.ErrClosed.
//
// Copies are not atomic. A read of a range that another goroutine or process is
// writing to can return old and new bytes mixed. Size is raised after the bytes
// below it are in place, so a reader that stays below Size sees appended bytes
// complete.
//
// # Names
//
// A name has 1 to 255 bytes (30 on darwin, 240 on Windows) of A-Z, a-z, 0-9, '.',
// '_' and '-', and does not begin with a dot. One leading slash, as in shm_open(3),
// is removed. Other names are [fs.ErrInvalid].
//
// # Platforms
//
//   - On Linux a block is a file on the tmpfs at /dev/shm. Attachments are open
//     file description locks on it; see fcntl(2). Blocks with a header are
//     [errors.ErrUnsupported] if /dev/shm is no tmpfs, and on processors without
//     64-bit atomic operations: linux/mips, linux/mipsle, and linux/arm with GOARM
//     below 7.
//   - On darwin a block is a POSIX shared memory object. Processes attach in a lock
//     page in its header. Memory is not reserved: [Sparse] makes no difference to
//     Create. A [ReadOnly] Segment without permission to write does not keep the
//     block's name; its memory stays valid. A process that calls exec stays
//     attached. [List] and [Reap] are [errors.ErrUnsupported], so a stale block
//     stays until a process creates or opens its name. See docs/darwin.md.
//   - On Windows a block is a section (file mapping) of the page file, named in the
//     namespace of the session: services and the sessions of different users do not
//     see each other's blocks. The system ends a block with its last attachment,
//     even if that was killed. So there are no stale blocks and no [Persistent]
//     ones, and [Headerless] blocks end in the same way. Up to eight blocks of one
//     name can be in use at a time, all but one of them unlinked. See
//     docs/windows.md.
//   - On other systems all functions return [errors.ErrUnsupported].
package shm
