# find_package(receivewal) gives the target receivewal::receivewal.
# The folders are found from this file's own, so that the installation can be moved.
get_filename_component(_receivewal_libdir "${CMAKE_CURRENT_LIST_DIR}/../.." REALPATH)
get_filename_component(_receivewal_prefix "${CMAKE_CURRENT_LIST_DIR}/../@UP@" REALPATH)

if(NOT TARGET receivewal::receivewal)
    add_library(receivewal::receivewal SHARED IMPORTED)
    set_target_properties(receivewal::receivewal PROPERTIES
        IMPORTED_LOCATION "${_receivewal_libdir}/libreceivewal.so.1"
        IMPORTED_SONAME "libreceivewal.so.1"
        INTERFACE_INCLUDE_DIRECTORIES "${_receivewal_prefix}/include")
endif()

foreach(_receivewal_file
        "${_receivewal_libdir}/libreceivewal.so.1"
        "${_receivewal_libdir}/libreceivewal-core.so.1"
        "${_receivewal_prefix}/include/receivewal.h")
    if(NOT EXISTS "${_receivewal_file}")
        set(receivewal_FOUND FALSE)
        set(receivewal_NOT_FOUND_MESSAGE "${_receivewal_file} is missing")
    endif()
endforeach()

unset(_receivewal_file)
unset(_receivewal_libdir)
unset(_receivewal_prefix)
