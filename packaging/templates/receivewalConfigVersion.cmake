# A release serves programs made for an earlier one with the same first number; before 1.0, with the same first two.
set(PACKAGE_VERSION "@VERSION@")
set(PACKAGE_VERSION_COMPATIBLE FALSE)
set(PACKAGE_VERSION_EXACT FALSE)

if(PACKAGE_FIND_VERSION VERSION_EQUAL PACKAGE_VERSION)
    set(PACKAGE_VERSION_EXACT TRUE)
    set(PACKAGE_VERSION_COMPATIBLE TRUE)
elseif(PACKAGE_FIND_VERSION VERSION_LESS PACKAGE_VERSION)
    string(REGEX REPLACE "^(0\\.[0-9]+|[1-9][0-9]*).*" "\\1" _receivewal_have "${PACKAGE_VERSION}")
    string(REGEX REPLACE "^(0\\.[0-9]+|[1-9][0-9]*).*" "\\1" _receivewal_want "${PACKAGE_FIND_VERSION}")
    if(_receivewal_have STREQUAL _receivewal_want)
        set(PACKAGE_VERSION_COMPATIBLE TRUE)
    endif()
    unset(_receivewal_have)
    unset(_receivewal_want)
endif()

# Built for one kind of processor.
if(CMAKE_SIZEOF_VOID_P AND NOT CMAKE_SIZEOF_VOID_P EQUAL 8)
    set(PACKAGE_VERSION "${PACKAGE_VERSION} (64 bit)")
    set(PACKAGE_VERSION_UNSUITABLE TRUE)
endif()
