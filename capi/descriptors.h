/* descriptors.h: the table that receivewal_core_share was given (version.c). */
#ifndef RW_CORE_DESCRIPTORS_H
#define RW_CORE_DESCRIPTORS_H

#include <stddef.h>
#include <stdint.h>

extern uint64_t *rw_core_descriptors;
extern size_t rw_core_descriptor_words;

#endif /* RW_CORE_DESCRIPTORS_H */
