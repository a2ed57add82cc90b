// Package shmobject tells POSIX shared memory objects, as darwin has them, from
// whatever else a descriptor that comes from somebody else can be open on. On
// Linux it does so for the objects of the stand-in, with the build tag standin.
package shmobject
