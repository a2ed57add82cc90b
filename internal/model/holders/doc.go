// Package holders explores how processes attach to a block and detach from it,
// on Linux and on darwin, exhaustively: every interleaving of the system calls of
// up to three processes on one name, with kills between any two of them. It is run
// by its tests and by nothing else.
//
// It shares no code with the library. TestTrace has the library and one process of
// the model make the same calls in the same situations, and compares the steps that
// they take: a step that is added, removed or moved on one side alone fails it.
//
//	go test -v ./internal/model/holders           # tables of scenarios and of mutants
//	go test -v ./internal/model/holders -traces   # and the way to each violation
//	go test -v ./internal/model/holders -large    # bounds that take minutes
//	go test -v -run TestTrace ./internal/model/holders # the steps of each call
//
// protocol.go is the protocol, darwin.go what Create does on darwin alone,
// kernel.go the part of a system that they stand on, properties.go what must be
// so.
//
// # The locks
//
// On Linux all are open file description locks on bytes of the object that lie beyond any
// data. Offsets are
//
//	1<<62 - 2, -1           for Python, see package waiting
//	1<<62                   U, locked by Unlink
//	5<<60 | tag             own byte of a possible writer
//	6<<60 | tag             own byte of any other attachment
//	1<<62 up to 7<<60       the whole range: U and all own bytes
//
// A tag has 60 bits: 20 of the number of the pid namespace (the low bits of the
// inode number of /proc/self/ns/pid; 0 if unknown), 22 of the process id, and 18
// that a process takes from a counter with a random start. A possible writer
// takes a write lock on its byte, as does every attachment with a descriptor that
// permits it, so that no two of them have one tag: EAGAIN on a single byte means
// another tag. Descriptors open for reading can take read locks alone.
//
// The range ends below 1<<63 - 1, because a lock up to there is reported with
// length 0. F_OFD_GETLK tells an own byte, of length 1, from a lock on the whole
// range.
//
// # The protocol
//
//	Attach:  open(name)
//	         GETLK(own bytes, both ranges)
//	           whole range locked       close, start over
//	           only ended processes     close, start over for at most a second; then as below
//	           a lock                   go on
//	           none, and kept           go on
//	           none, read-only          ErrNotExist
//	           none                     SETLK(whole range), write
//	                                      EAGAIN, or kept by now: close, start over
//	                                      granted: remove, ErrNotExist
//	         SETLK(own byte); EAGAIN: start over
//	         stat(name) is this inode, and state is live; else detach, start over
//	         (attached to by a descriptor: state alone)
//	Detach:  if count says that this is the only attachment: SETLK(whole range) in
//	         place; granted: remove if not kept
//	         F_UNLCK of everything
//	         kept, or descriptor open for reading: close
//	         again: GETLK(own bytes): a lock: close; the whole range locked: again
//	                SETLK(whole range): EAGAIN: again; granted: remove if not kept
//	Create:  as Reap; O_TMPFILE, header, own byte, linkat; EEXIST: as Reap, then linkat
//	Reap:    open; kept: no; GETLK as Attach; none: SETLK(whole range); granted: remove
//	Unlink:  open, SETLK(U), stat(name) is this inode: unlink, F_UNLCK; else start over
//	remove:  stat(name) is this inode: unlink; state=dead, F_UNLCK, close
//	Aside:   SETLK(byte among the others), F_UNLCK(byte among the writers)
//	Back:    the reverse
//
// An Open that fails after it has locked its byte detaches as Close does, because
// another process may have seen the byte and left the block to it. Keep stores 1
// in the header's keep word, for good. The count in the header selects which of
// two orders Close tries first, and nothing else: the model takes both, whatever
// the count. There is no lock for the common path of Open and Close. There is no
// adoption of a kept block either: it is attached to as any other.
//
// What has its name is never marked dead. If it were marked before the unlink, by
// a process that is then killed, and a daemon kept a lock on it, it could neither
// be attached to nor removed.
//
// A lock belongs to an ended process if its tag has this pid namespace and
// kill(2) says ESRCH for its process id. The kernel drops the locks of a process
// before it can be waited for, so what holds such a lock is a child: one between
// fork and exec, which drops it soon, or a daemon, which does not and is alive.
//
// # What is modelled
//
// The name; inodes with two words of their header, state and keep; open file
// descriptions with their locks. A step is one system call, or one access to the
// header, or a few of which at most one can be noticed by others.
//
//   - A failed SETLK leaves the locks of the description as they were.
//   - A killed process makes no more steps. The locks of each description go in
//     one step, at any later time, one description independent of another.
//   - A child between fork and exec keeps a description with the locks on it, of
//     a process that was killed, or that has closed it. In a scenario "that stay"
//     it keeps it for good. It does not keep the lock on the whole range for
//     good: Open would be ErrBusy.
//   - An outsider removes the name between any two steps.
//   - An Open may refuse a block that passed all checks of the lifecycle, and a
//     Close may give up waiting for the whole range (impatient).
//
// Not modelled: payload, sizes, header damage, permissions (no process fails to
// unlink), names other than the one, hard links and renames, file systems other than
// tmpfs, memory order within the header, and time: a retry is a step like another.
// Windows is not, either: it has darwin's locks from the kernel, and no block that is
// left behind.
//
// # Darwin
//
// The protocol above the locks is the same. What differs is beneath and before:
//
//   - Locks are words of a lock page that name processes: a mutex, which is U, and a
//     slot for each attachment, its own byte. To lock the whole range is to take the
//     mutex and find all slots free but one's own, which stays, and to keep the mutex.
//     A slot is taken while the mutex is held; that is one step here, because what
//     others could find in between is the mutex held, and they start over.
//   - That a killed process has ended shows to others at any later time; the model
//     lets it show for each of its objects apart, which is more than can happen.
//   - There are no children that keep locks. Opens that may not write hold nothing,
//     so they are not modelled.
//   - An object has its name before its size, its lock page and its header. Which of
//     two processes sets the size is a step of the system. An Open that comes before
//     the object is ready finds nothing. A Create takes its creator for dead at any
//     moment, right or wrong: how long it waits is nothing to the protocol.
//
// # Properties
//
// A user of a block is a process from the success of its Create or Open until
// its Close has dropped its byte or has locked the whole range, or until its
// process was killed and has ended.
//
//   - S1: no Close, Open, Create or Reap unlinks the name of a block that is kept,
//     that another process uses, or that a child of one holds locks on. No unlink
//     hits another block than the one that was decided on; but see R1.
//   - S2: no two users of different blocks under the one name, unless one of the
//     blocks lost its name to an explicit Unlink or an outsider, or was attached to
//     by a descriptor.
//   - S3: the name leads to the block of every user, with the same exceptions, and
//     that block is not marked dead. An Open that has not locked its byte when
//     the name is taken away does not attach.
//   - S4: when all are gone, a name remains only of a kept block, or of one whose
//     last user was killed, or gave up waiting, or when it left saw no lock but
//     those of ended processes and of descriptors open for reading. On darwin a name
//     can also remain of a creator that was killed, or that a Create that was killed
//     had taken for dead.
//   - S5: what remains is gone after the next Create with its Close, or Open, or
//     Reap, and no Open attaches to it; on darwin what was never ready is gone after
//     the next Create. A kept block is attached to, and remains.
//   - S6, "no way out": from every state there is a way to where all processes
//     have finished, on which none is killed and no child of a living process
//     need come to its exec.
//   - S7: no process takes for a block what has no header yet. On Linux the header
//     comes before the link.
//   - S9: an Open that attaches to a block that is not kept has met a user, or an
//     Open that holds its byte: there was one at some time between its open(2)
//     and its end. The latter may then fail, or be killed: the block has been
//     handed on by a process that was never attached. Or the Open has waited for
//     children of ended processes as long as it is going to. On darwin a process
//     killed in its last Close passes for a user until it has ended.
//   - S10: a Create that says ErrExist has come upon a block that in its time was
//     kept, or had a user, or an Open that held its byte; or has waited as above.
//   - H1: Refs counts every process that is attached during all of the call, unless
//     it moves from one range to the other, and none that is not attached, or in
//     Open, at any time of it.
//   - R1, the known residual of S1: an outsider removes the name between the
//     identity check of an unlinker and its unlink, and a Create in the same
//     moment loses its new name.
//
// Nothing depends on the count, so that no property is about it.
package holders
