// Package model explores the lifecycle protocol of blocks exhaustively: every
// interleaving of the system calls of up to three processes on one name, with
// kills between any two of them, on Linux, and on darwin where it says so. It is
// run by its tests and by nothing else.
//
// It shares no code with the library. TestTrace has the library and one process of
// the model make the same calls in the same situations, and compares the steps that
// they take: a step that is added, removed or moved on one side alone fails it.
//
//	go test -v ./internal/model             # tables of scenarios and of mutants
//	go test -v ./internal/model -traces     # and the way to each violation
//	go test -v -run TestTrace ./internal/model # the steps of each call
//
// protocol.go is the protocol, darwin.go what Create does on darwin alone,
// kernel.go the little of a system that they stand on, properties.go what must be
// so, explore.go the search.
//
// # What is modelled
//
// The name; inodes with two words of their header, state and count; open file
// descriptions with their OFD locks on the life range L and the mutex M. A step
// is one system call, or one access to the header, or a few of which at most
// one can be noticed by others: a block is private until it is linked, a header
// word cannot change under the lock that is held, and close(2) of a description
// without locks means nothing to anybody.
//
//   - A failed conversion of an OFD lock keeps the lock that was there.
//   - A killed process makes no more steps. The locks of each description of it
//     go in one step, at any later time, one description independent of another.
//   - A child between fork and exec (a ghost) keeps a description, with the
//     locks still on it, for any time after its parent has closed it.
//   - An outsider removes the name between any two steps.
//   - An Open may turn down a block that passed all checks of the lifecycle
//     (Refuse), and a Close may give up waiting for M (Impatient): it takes back
//     its count all the same, and leaves without a look at L.
//
// # Darwin
//
// The protocol above the locks is the same. What differs is beneath and before:
//
//   - The locks are words of a lock page that name processes. L exclusive is not kept:
//     whoever has M has looked at all slots. That a killed process is gone shows to
//     others at any later time; the model lets it show for each of its objects
//     apart, which is more than can happen.
//   - There are no ghosts, and read-only Opens without permission to write hold
//     nothing, so they are not modelled.
//   - An object has its name before its size, its lock page and its header. Which of
//     two processes sets the size is a step of the system. An Open that comes before
//     the object is ready finds nothing. A Create takes its creator for killed at any
//     moment, right or wrong: how long it waits is nothing to the protocol.
//
// # What is not
//
// Payload, sizes, header damage, permissions (nobody fails to unlink), names
// other than the one, hard links and renames, file systems other than tmpfs,
// memory order within the header, and time: a retry is a step like another.
// Users who take no locks are not there. Blocks never have a header that is
// half written, because the header is written before the link.
//
// # Properties
//
// A user of a block is a process from the success of its Create or Open until
// its Close has given up L, or got it exclusively, or until the kernel has
// dropped the locks of the killed process.
//
//   - S1: no Close, Open, Create or Reap unlinks the name of a block that another
//     living process uses. No unlink, an explicit one included, hits another
//     block than the one that was decided on; but see R1.
//   - S2: no two living users of different blocks under the one name, unless one
//     of the blocks lost its name to an explicit Unlink or an outsider.
//   - S3: the name leads to the block of every living user, with the same
//     exception, and that block is not marked stale. An Open under M, at the time
//     it attaches, is excepted only from an outsider's act.
//   - S4: when all are gone, a name remains only of a persistent block, or of one
//     whose last user was killed, or gave up waiting for M, or found nobody but
//     read-only or dying holders of L left when it closed. On darwin a name can
//     also remain of a creator who was killed, or of one who was beaten to the
//     size by a Create that was killed.
//   - S5: whatever remains is gone after the next Create with its Close, or Open,
//     or Reap (on darwin, what was never ready: after the next Create), and neither
//     Open nor a read-only one attaches to it. A persistent
//     block is taken over, with a count of 1.
//   - S6: from every state there is a way to where all processes have finished,
//     on which nobody is killed and no ghost need go first.
//   - S7: nobody takes for a block, and nobody can, what has no header yet. On
//     Linux the header comes before the link, so that it is not a question.
//   - S8: the count is never less than the number of counted users. While nobody
//     holds M it is that number, unless a user was killed since the block was
//     made or taken over.
//   - S9: an Open that attaches to a block that is not persistent has met a user:
//     there was one at some time between its open(2) and its end. Where one of
//     the two is read-only, an Open that has got L passes for a user, for a
//     read-only Open is not under M, and its lock looks like any other. If then
//     it is killed or refuses, the block has been handed on by one who never was
//     attached.
//   - S10: a Create that says ErrExist has come upon a block that in its time had a
//     user, or an Open that has got L, or a last Close at work, or is persistent.
//   - R1, the known residual of S1: an outsider removes the name between the
//     identity check of an unlinker and its unlink, and a Create in the same
//     moment loses its new name. Nothing short of an unlink by inode prevents
//     it. With R1 set aside, everything above holds in the company of outsiders.
package model
