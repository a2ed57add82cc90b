// Command bench runs the same work through package shm, through other ways to
// share memory between Go programs, and through the least that the machine lets
// it be done with, in turn in one process, and prints the ratios.
//
//	go run ./bench             the table
//	go run ./bench -plots docs the curves as well, as SVG
//	go run ./bench -quick      all of it in seconds, to see that it runs
//	go run ./bench -json       for programs
//
// It runs on Linux. What it makes in /dev/shm it takes away again.
package main
