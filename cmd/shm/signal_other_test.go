//go:build !linux

package main

func signals()  {}
func confined() {}
