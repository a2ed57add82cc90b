// Bench measures package shm against other ways to share memory between Go
// programs and against the least work with which it could be done. All of them
// run in turn in one process; bench prints the ratios.
//
//	go run ./bench             print the table
//	go run ./bench -plots docs write the curves as well, as SVG
//	go run ./bench -quick      run everything in seconds, to see that it works
//	go run ./bench -json       print JSON
//
// It runs on Linux, and removes what it creates in /dev/shm.
package main
