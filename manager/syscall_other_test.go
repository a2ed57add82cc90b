//go:build !linux && !darwin && !windows

package manager_test

import "errors"

// Elsewhere there are no servers, and not all of these errors.
var errReset, errInUse = errors.ErrUnsupported, errors.ErrUnsupported
