// Command soak is a randomised storm on a few names: processes create, attach,
// stream, follow, check, lock, keep, close, unlink, reap and are killed, while
// others of their goroutines start programs, whose processes hold copies of all
// descriptors, and so of all locks, from fork to exec.
//
//	go run ./internal/soak -seed 1 -duration 60s
//
// goes on until the duration has passed and at least 100,000 operations and
// 10,000 kills have been made, and prints how many there were. It exits with
// status 1 at the first violation of what is promised:
//
//   - Two processes that are attached under one name at one time are attached
//     to the same block, unless that block was unlinked on purpose. Each process
//     writes into memory that it shares with the first one, and that outlives
//     it, when it was attached to which block for certain: from after Open has
//     returned to before Close is called, or to before the kill. The intervals
//     are compared when all are gone.
//   - Whoever is attached finds its block under its name, and what it finds in
//     the block is what was written there.
//   - Whoever follows a block to its end has all that was to be written there. One process
//     at a time has a block's lock, and learns whether the last one died with it.
//   - No call fails in a way that it should not.
//   - When all have been waited for, no block can be opened and no name is left, but
//     those of Persistent blocks, whatever their children still hold.
//   - A process that has closed what it opened has no descriptor and no mapping
//     of it any more.
//
// The seed determines what each process does and after which operation, and
// how many nanoseconds later, it is killed. When the kernel runs which process
// is its own business.
package main
