//go:build !linux

package main

func signals() {}
