package segment

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// OS is the operating system's file system.
var OS FS = osFS{noHolder{}}

// OSFor is OS with a holder.
func OSFor(h Holder) FS { return osFS{h} }

type noHolder struct{}

func (noHolder) Hold(int)    {}
func (noHolder) Release(int) {}

type osFS struct{ holder Holder }

// OpenDir opens a directory for reading; a relative path means what it meant at this moment.
func (fsys osFS) OpenDir(path string) (Dir, error) {
	fd, err := openat(unix.AT_FDCWD, path, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), path)
	fsys.holder.Hold(int(f.Fd()))
	return &osDir{f: f, holder: fsys.holder}, nil
}

// hiddenFolder holds files without a visible name where the file system has no O_TMPFILE. Tools that take each
// regular file of the directory for a segment skip folders.
const hiddenFolder = ".receivewal"

type osDir struct {
	f         *os.File
	holder    Holder
	locked    bool
	noTmpfile bool // O_TMPFILE doesn't work here: use the hidden folder
	next      int  // number of the next file in the hidden folder
}

func (d *osDir) fd() int { return int(d.f.Fd()) }

// Device is the number of the file system; 0 where it is not known.
func (d *osDir) Device() uint64 {
	var st unix.Stat_t
	if unix.Fstat(d.fd(), &st) != nil {
		return 0
	}
	return st.Dev
}

func (d *osDir) Names() ([]string, error) {
	// A descriptor of its own: the position in the directory belongs to the descriptor.
	fd, err := d.openat(".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	list := os.NewFile(uintptr(fd), d.f.Name())
	defer list.Close()
	entries, err := list.ReadDir(-1)
	if err != nil {
		return nil, err
	}
	names := make([]string, 0, len(entries))
	for _, e := range entries {
		if d.isRegular(e) {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// isRegular follows symbolic links. A file that has gone meanwhile is none.
func (d *osDir) isRegular(e fs.DirEntry) bool {
	if e.Type()&fs.ModeSymlink == 0 {
		return e.Type().IsRegular()
	}
	var st unix.Stat_t
	return unix.Fstatat(d.fd(), e.Name(), &st, 0) == nil && st.Mode&unix.S_IFMT == unix.S_IFREG
}

func (d *osDir) Stat(name string) (int64, time.Time, error) {
	var st unix.Stat_t
	if err := unix.Fstatat(d.fd(), name, &st, 0); err != nil {
		return 0, time.Time{}, err
	}
	// The time of the data's last change (mtime) can be set to any; this one cannot, and comes with every change.
	return st.Size, time.Unix(st.Ctim.Unix()), nil
}

func (d *osDir) open(name string, flags int) (*os.File, error) {
	fd, err := d.openat(name, flags, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

func (d *osDir) openat(name string, flags int, mode fs.FileMode) (int, error) {
	return openat(d.fd(), name, flags, mode)
}

// openat opens a file, but never as one of the standard descriptors: where a host has closed them, what it prints would end up in
// the WAL.
func openat(dir int, name string, flags int, mode fs.FileMode) (fd int, err error) {
	err = retry(func() error {
		fd, err = unix.Openat(dir, name, flags|unix.O_CLOEXEC, uint32(mode))
		return err
	})
	if err != nil || fd > 2 {
		return fd, err
	}
	defer unix.Close(fd)
	return unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
}

func (d *osDir) Open(name string, write bool) (File, error) {
	flags := unix.O_RDONLY
	if write {
		flags = unix.O_RDWR
	}
	f, err := d.open(name, flags)
	if err != nil {
		return nil, err
	}
	return d.file(f), nil
}

func (d *osDir) file(f *os.File) *osFile {
	d.holder.Hold(int(f.Fd()))
	return &osFile{File: f, dir: d}
}

func (d *osDir) Create(mode fs.FileMode) (File, error) {
	f, err := d.createUnnamed(mode)
	if err != nil {
		return nil, err
	}
	if err := f.Chmod(mode); err != nil { // whatever the umask is
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func (d *osDir) createUnnamed(mode fs.FileMode) (*osFile, error) {
	if !d.noTmpfile {
		fd, err := d.openat(".", unix.O_TMPFILE|unix.O_RDWR, mode)
		if err == nil {
			if _, err := os.Lstat(procName(fd)); err == nil {
				return d.file(os.NewFile(uintptr(fd), "unnamed segment")), nil
			}
			unix.Close(fd) // without /proc it could not be linked
		} else if !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EISDIR) && !errors.Is(err, unix.ENOENT) &&
			!errors.Is(err, unix.EINVAL) {
			return nil, err
		}
		d.noTmpfile = true
	}
	if err := unix.Mkdirat(d.fd(), hiddenFolder, 0o700); err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, err
	}
	d.next++
	name := fmt.Sprintf("%s/%d", hiddenFolder, d.next)
	fd, err := d.openat(name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL, mode)
	if err != nil {
		return nil, err
	}
	f := d.file(os.NewFile(uintptr(fd), name))
	f.hidden = name
	return f, nil
}

// procName is the path by which linkat reaches an open file without a name.
func procName(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }

func (d *osDir) Link(file File, name string) error {
	f := file.(*osFile)
	if f.hidden == "" {
		return retry(func() error {
			return unix.Linkat(unix.AT_FDCWD, procName(int(f.Fd())), d.fd(), name, unix.AT_SYMLINK_FOLLOW)
		})
	}
	err := unix.Renameat2(d.fd(), f.hidden, d.fd(), name, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) { // the file system doesn't know the flag
		err = d.renameToFree(f.hidden, name)
	}
	if err == nil {
		f.hidden = ""
	}
	return err
}

// renameToFree renames a file unless the new name exists. The directory's lock keeps other receivers out in between.
func (d *osDir) renameToFree(from, to string) error {
	var st unix.Stat_t
	err := unix.Fstatat(d.fd(), to, &st, unix.AT_SYMLINK_NOFOLLOW)
	switch {
	case err == nil:
		return unix.EEXIST
	case errors.Is(err, unix.ENOENT):
		return unix.Renameat(d.fd(), from, d.fd(), to)
	}
	return err
}

// Replace gives the file a hidden name first: there is no system call that links a file over another.
func (d *osDir) Replace(file File, name string) error {
	f := file.(*osFile)
	if f.hidden == "" {
		defer unix.Unlinkat(d.fd(), hiddenFolder, unix.AT_REMOVEDIR) // nothing else is in it
		if err := unix.Mkdirat(d.fd(), hiddenFolder, 0o700); err != nil && !errors.Is(err, unix.EEXIST) {
			return err
		}
		hidden := hiddenFolder + "/" + name
		if err := d.Link(f, hidden); err != nil {
			return err
		}
		f.hidden = hidden
	}
	// Under a name: without one an fsync need not last (see Writer.show), and here the old file is gone with the rename.
	if err := f.Sync(); err != nil {
		return err
	}
	if err := d.Rename(f.hidden, name); err != nil {
		return err
	}
	f.hidden = ""
	return nil
}

func (d *osDir) Rename(from, to string) error {
	return retry(func() error { return unix.Renameat(d.fd(), from, d.fd(), to) })
}

func (d *osDir) Remove(name string) error {
	return retry(func() error { return unix.Unlinkat(d.fd(), name, 0) })
}

func (d *osDir) Sync() error {
	err := retry(func() error { return unix.Fsync(d.fd()) })
	if errors.Is(err, unix.EINVAL) {
		return nil // this file system (CIFS) has no fsync for directories; PostgreSQL does the same (fsync_fname_ext in fd.c)
	}
	return err
}

// Lock takes an flock on the directory itself. A lock belongs to the open file, and a forked child shares that: so
// Close unlocks, and does not rely on the descriptor's end.
func (d *osDir) Lock() error {
	err := retry(func() error { return unix.Flock(d.fd(), unix.LOCK_EX|unix.LOCK_NB) })
	if errors.Is(err, unix.EWOULDBLOCK) {
		return ErrLocked
	}
	if err != nil {
		return err
	}
	d.locked = true
	return d.emptyHiddenFolder()
}

// emptyHiddenFolder removes what a crash left in the hidden folder, and the folder.
func (d *osDir) emptyHiddenFolder() error {
	fd, err := d.openat(hiddenFolder, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil // there is none
	}
	hidden := os.NewFile(uintptr(fd), hiddenFolder)
	defer hidden.Close()
	names, err := hidden.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := unix.Unlinkat(fd, name, 0); err != nil && !errors.Is(err, unix.EISDIR) {
			return err
		}
	}
	err = unix.Unlinkat(d.fd(), hiddenFolder, unix.AT_REMOVEDIR)
	if errors.Is(err, unix.ENOTEMPTY) {
		return nil // folders in it are not ours
	}
	return err
}

func (d *osDir) Close() error {
	var err error
	if d.locked {
		err = errors.Join(d.emptyHiddenFolder(), unix.Flock(d.fd(), unix.LOCK_UN))
	} else if d.next > 0 {
		unix.Unlinkat(d.fd(), hiddenFolder, unix.AT_REMOVEDIR) // unless somebody else uses it
	}
	d.holder.Release(int(d.f.Fd()))
	return errors.Join(err, d.f.Close())
}

// osFile is an open file. hidden is its name in the hidden folder, as long as it has no other.
type osFile struct {
	*os.File
	dir    *osDir
	hidden string
}

func (f *osFile) Allocate(size int64) error {
	err := retry(func() error { return unix.Fallocate(int(f.Fd()), 0, 0, size) })
	if !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.ENOSYS) {
		return err
	}
	// The file system cannot reserve space: then at least the length is right, and a full disk shows when data is
	// written.
	return f.extend(size)
}

// extend makes the file longer, never shorter.
func (f *osFile) extend(size int64) error {
	if have, err := f.Size(); err != nil || have >= size {
		return err
	}
	return f.Truncate(size)
}

func (f *osFile) Size() (int64, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

func (f *osFile) Sync() error {
	return retry(func() error { return unix.Fdatasync(int(f.Fd())) })
}

func (f *osFile) Close() error {
	f.dir.holder.Release(int(f.Fd()))
	err := f.File.Close()
	if f.hidden != "" {
		err = errors.Join(err, unix.Unlinkat(f.dir.fd(), f.hidden, 0))
	}
	return err
}

// retry repeats a system call that a signal interrupted; the Go runtime sends itself some.
func retry(call func() error) error {
	for {
		if err := call(); err != syscall.EINTR {
			return err
		}
	}
}
