package shmtest_test

import _ "github.com/shmkit/shm/internal/standin" // where the environment says so
