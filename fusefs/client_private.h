/* SPDX-License-Identifier: Apache-2.0 */
/* client_private.h - between client.c and client_error.c. */
#pragma once
#include "client.h"

enum client_outcome client_outcome_of(enum err err, enum status code);
