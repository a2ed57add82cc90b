package section

import (
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/windows"
)

var security atomic.Pointer[windows.SecurityAttributes]

// Security returns the attributes to create objects with. The owner is this user. This
// user, the administrators and the system have all access, and no other user has any. The
// system's default can let more processes read an object, such as all of the logon
// session, and keep the user from opening one that a process with administrator rights has
// created.
func Security() (*windows.SecurityAttributes, error) {
	if sa := security.Load(); sa != nil {
		return sa, nil
	}
	token := windows.GetCurrentProcessToken()
	user, err := token.GetTokenUser()
	if err != nil {
		return nil, err
	}
	id := user.User.Sid.String()
	sddl := "O:" + id + "D:P(A;;GA;;;SY)(A;;GA;;;BA)(A;;GA;;;" + id + ")"
	if c := container(token); c != "" {
		sddl += "(A;;GA;;;" + c + ")"
	}
	sd, err := windows.SecurityDescriptorFromString(sddl)
	if err != nil {
		return nil, err
	}
	sa := &windows.SecurityAttributes{SecurityDescriptor: sd}
	sa.Length = uint32(unsafe.Sizeof(*sa))
	security.Store(sa)
	return sa, nil
}

// container returns the id of the AppContainer that the process runs in, or "". A process
// there has no access by its user alone.
func container(token windows.Token) string {
	const tokenAppContainerSid = 31
	var info struct { // TOKEN_APPCONTAINER_INFORMATION, and room for the id
		sid *windows.SID
		_   [68]byte // SECURITY_MAX_SID_SIZE
	}
	var n uint32
	err := windows.GetTokenInformation(token, tokenAppContainerSid, (*byte)(unsafe.Pointer(&info)), uint32(unsafe.Sizeof(info)), &n)
	if err != nil || info.sid == nil {
		return ""
	}
	return info.sid.String()
}
