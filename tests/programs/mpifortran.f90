! What the tests run on every rank in Fortran: one source, compiled with -DMPIF, -DMODULE or -DF08 for
! the three ways that Fortran has to MPI. Lines of "key=value" as mpiinject.c prints them.
program mpifortran
#if defined(F08)
  use mpi_f08
#elif defined(MODULE)
  use mpi
#endif
  implicit none
#if defined(MPIF)
  include 'mpif.h'
#endif
  integer, parameter :: items = 100000
  integer :: rank, ranks, total, bad, length, i, ierr
  integer :: sent(items), got(items)
  character(len=MPI_MAX_LIBRARY_VERSION_STRING) :: version

  call MPI_Init(ierr)
  call MPI_Comm_rank(MPI_COMM_WORLD, rank, ierr)
  call MPI_Comm_size(MPI_COMM_WORLD, ranks, ierr)
  call MPI_Get_library_version(version, length, ierr)
  do i = 1, len(version)
    if (i > length .or. iachar(version(i:i)) < 32) version(i:i) = ' '
  end do
  ! MPI_IN_PLACE and MPI_STATUS_IGNORE are addresses, which program and library must agree on.
  total = rank + 1
  call MPI_Allreduce(MPI_IN_PLACE, total, 1, MPI_INTEGER, MPI_SUM, MPI_COMM_WORLD, ierr)
  sent = [(rank * 7 + i, i = 1, items)]
  got = -1
  call MPI_Sendrecv(sent, items, MPI_INTEGER, mod(rank + 1, ranks), 3, &
                    got, items, MPI_INTEGER, mod(rank + ranks - 1, ranks), 3, &
                    MPI_COMM_WORLD, MPI_STATUS_IGNORE, ierr)
  bad = count(got /= [(mod(rank + ranks - 1, ranks) * 7 + i, i = 1, items)])
  write (*, '(4(a,i0),2a)') 'rank=', rank, ' size=', ranks, ' sum=', total, ' bad=', bad, &
    ' version=', version(1:90)
  if (rank == 0) call print_maps()
  flush (6)
  call MPI_Finalize(ierr)

contains

  subroutine print_maps()
    character(len=4096) :: line, last
    integer :: state, at
    last = ''
    open (10, file='/proc/self/maps', action='read')
    do
      read (10, '(a)', iostat=state) line
      if (state /= 0) exit
      at = index(line, '/')
      if (at == 0 .or. index(line, '/libmpi') + index(line, '/libuc') == 0) cycle
      if (line(at:) == last) cycle
      last = line(at:)
      write (*, '(2a)') 'maps=', trim(last)
    end do
    close (10)
  end subroutine
end program
