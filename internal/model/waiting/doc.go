// Package waiting explores how processes wait for each other on a block of
// layout 2, exhaustively: every interleaving of the accesses to the header's
// words and of the system calls of up to three processes, with kills between any
// two of them. There are three models, for which the words are apart: of a stream
// with its followers (stream.go), of the lock (lock.go), and of Windows' table of
// waiters (table.go). They share no code with the library. TestTrace and TestLockTrace
// have the library and one process of the model make the same calls, and compare what
// they store and which system calls they make; of the table there is no trace.
//
//	go test -v ./internal/model/waiting           # tables of scenarios and of mutants
//	go test -v ./internal/model/waiting -traces   # and the way to each violation
//	go test -v ./internal/model/waiting -large    # bounds that take minutes
//
// # The words
//
// Offsets are those in the header of layout 2. Words that are not named here are
// those of package shm.
//
//	offset size  word
//	    68    4  keep: 1 if the block outlives its attachments; as flag 1 of the
//	             fixed part, but can be set later. Never cleared
//	   192    8  size: bits 0 to 47 the length; 48 to 60 the low bits of
//	             generation; 61 cut; 62 begun; 63 finished
//	   200    4  armed: 1 if a process may be waiting on event
//	   208    8  generation
//	   216    8  dirty: while cut is set, bytes from here on are zero
//	   320    4  event
//	   384    8  held: 0, or 2*tag, and 1 more if contended
//	   392    8  guest: 0, or 2*tag, and 1 more if it has the lock
//	   400    4  wake
//	   448   20  held, guest and wake of the lock of Truncate
//	   512  256  on Windows, the table of waiters: 64 words of 4 bytes, 0 or 1
//
// A Cap is below 1<<48. All are accessed by sequentially consistent operations:
// the protocols need that of size and armed, of held and guest, and of the waiters
// in the table. A Python process loads and stores, and makes FUTEX_WAKE_OP in
// between, which is a full barrier.
//
// # Waking
//
//	changed:  if armed != 0 and swap(armed, 0) != 0: event++; futex wake all of event
//	wait:     look; found: return
//	          e = event; armed = 1; look; found: return
//	          futex wait while event == e, at most to the next tick; again
//
// All that raises size, Finish, a Truncate that begins a generation, and the Close
// of a possible writer, after it has dropped its byte, end with changed. Notify is
// changed without its first load, because the stores of its caller need not be
// atomic.
//
// # The size
//
// cut means that Size was lowered and that the bytes from it up to dirty have not
// been cleared. Nothing is raised while it is set. Where it is not set all bytes
// beyond Size are zero, but for what a write in progress, or one that failed or was
// killed, has put there.
//
//	WriteAt:   s = size
//	  place:   end <= length: copy; goto after
//	           finished: ErrFinished
//	           cut: lock, clear, unlock; s = size; goto place
//	           copy
//	  raise:   swap size from s to s with length end, begun; done: changed, return
//	  after:   old = s; s = size
//	           other generation: goto place, and copy again
//	           end <= length: return
//	           finished: ErrFinished
//	           goto raise
//	Truncate:  lock
//	  again:   s = size
//	           n >= length, and cut: clear; goto again
//	           n == length, not finished: unlock, return
//	           n > length, not finished: swap size from s to n, begun, or goto again;
//	             changed; unlock; return
//	           not cut: dirty = length
//	           generation has the low bits of s: generation++
//	           swap size from s to n, the low bits of generation, cut if n < length or
//	             it was set, neither begun nor finished; or goto again
//	           changed
//	           clear; unlock
//	clear:     zero from length to dirty; store size without cut
//	Finish:    s = size; cut: lock, clear, unlock, again; swap finished on; changed
//
// lock and unlock are those of the lock of Truncate. Its holder alone changes
// generation, dirty, cut and the low bits, and while cut is set all of size. If it dies, the next Truncate, or the
// next write that would raise Size, takes the lock over and clears. So a Truncate
// has taken effect or has not, whenever it is killed, and a reader never sees half
// of it.
//
//	Follow:    from the first byte, or the end, that it delivers, f is its generation
//	  look:    not begun following: g = generation; s = size; generation != g: again;
//	             f = g if it has the low bits of s, else g-1
//	             neither begun nor finished: nothing
//	           following: s = size; changed(f, s): ErrTruncated
//	           offset < length: copy; s = size;
//	             changed(f, s): ErrTruncated, or again if it has delivered nothing
//	             else deliver
//	           finished: io.EOF
//	           nothing; after armed = 1, and following: no writer, by GETLK: look once
//	             more; still nothing: ErrAbandoned
//	changed(f, s): s has not the low bits of f, or then generation - f > 1
//
// # The lock
//
// A tag is that of an attachment, which has its byte in the writers' range: see
// package holders. It is dead if it is not the own tag and F_OFD_GETLK says that
// its byte is not locked. On attaching, a tag that is in held or guest is not
// drawn. One that nobody ever draws, all ones, is left by a Close that has the
// lock.
//
//	Lock:      swap held from 0 to tag: goto guest
//	  again:   w = wake
//	           g = guest; g != 0 and not dead: goto sleep
//	           h = held
//	           0 or dead: swap held from h to tag, contended if h is, or if it is dead,
//	             or after a sleep; or goto again. goto guest
//	           not contended: swap held from h to h, contended, or goto again
//	  sleep:   futex wait while wake == w, at most 20 ms; goto again
//	  guest:   g = guest
//	           g != 0 and not dead: swap held from tag to what it was, contended if that
//	             is dead; wake++, futex wake all; goto again
//	           held has not the own tag: goto again
//	           g dead: swap guest from g to 0, or goto guest; recovered if it had the lock
//	           return; recovered if h was dead
//	  given up: after a wake: wake++, futex wake one
//	Unlock:    swap held from tag to 0
//	           contended, or guest != 0: wake++; futex wake one, or all if guest != 0
//	Close:     swap held from tag to the dead tag; contended or guest != 0: wake++, futex
//	           wake all; then drop the byte
//
// A process without compare-and-swap, as Python, locks as a guest. Guests exclude
// each other by a lock of the system, on a byte for each of the two locks.
//
//	Lock:      SETLK(guests' byte); g = guest; recovered = g had the lock
//	           guest = tag, has the lock if recovered
//	  again:   w = wake; h = held
//	           not 0 and not dead: futex wait while wake == w, at most 20 ms; goto again
//	           guest = tag, has the lock
//	           dead: held = 0; recovered
//	Unlock:    guest = 0; wake++, futex wake all; F_UNLCK(guests' byte)
//
// # Windows
//
// There is no futex. A waiting process has a slot of the table, and an auto-reset
// event whose name is made of the block's id and the slot's number; nothing is
// read from the table but whether to look for the event. The event says that a
// slot is in use: the system ends it with its last handle.
//
//	claim:   for each slot: create its event; it was there: close it; else word = 1
//	         no slot: look every 1 to 10 ms
//	wait:    e = event; armed = 1; look; event != e: again; wait for the event
//	leave:   word = 0; close the event
//	changed: as above, and for each word that is 1: open its event; there: set it, close
//
// # What is modelled
//
// A step is one access to a word, one byte copied or cleared, or one system call.
// A killed process makes no more steps; its byte, or its handles, go at any later
// time. Sleepers look again at times (ticks) only where a scenario says so, which
// all with kills do. A block has two bytes, and three generations after the first.
// The low bits of the generation count to 4, and to 2 where it says modulo 2: then
// a single process writes and truncates, because its own swaps are not compared
// with generation. That the low bits come round by 8,192 Truncates between the
// copy and the swap of one write, with the same length, is the limit of WriteAt.
//
// In the model of a stream the lock of Truncate is one step that succeeds if it
// is free or its holder is dead, which the model of the lock justifies. A tag that
// is drawn again while another process has read it and not yet swapped it is left
// out: see package holders for how many there are. Memory order is sequential.
//
// # Properties
//
// Of a stream:
//
//   - W1: while a sleeper would go on if it looked, a process is between its change
//     and the end of its wake; unless one was killed there, or what has happened is
//     the death of a writer.
//   - W2, "no way out": from every state there is a way to where all have finished
//     or wait for a stream that has not begun.
//   - W3: io.EOF is delivered only at the length at which the followed generation
//     was finished, and Size is not raised after that.
//   - W4: a byte below Size is what was written there in this generation or kept
//     from the one before. A byte beyond Size is zero, unless cut is set, or a write
//     in progress, or one that failed or was killed, has put it there. While it is
//     set, the holder of the lock of Truncate alone changes size.
//   - W5: all that a Follower delivers is of one generation, which was current at
//     some time of the call.
//   - W6: ErrTruncated only if the generation has changed.
//   - W7: ErrAbandoned only if at some time of the Read there was no possible
//     writer, and nothing that had not been delivered.
//
// Of the lock:
//
//   - L1: one process at a time has the lock.
//   - L2: recovered is told exactly if the last holder died, or was closed, with the
//     lock. With guests it is told at least then.
//   - L3: while a process sleeps, another has the lock, or is in a call; without
//     ticks, and if none has died.
//   - L4, "no way out": from every state there is a way to where all have finished.
//
// Of the table:
//
//   - T1: as W1.
//   - T2: no two waiters have one slot.
//   - T3: when all have left or died, every slot can be claimed.
//   - T4, "no way out": as W2.
package waiting
