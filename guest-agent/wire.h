/* Frames between the host and the agent. The Python side of the same table is src/shem/runtimes/guest/frames.py.
 *
 *   u32le length of payload | u8 type | u32le job | payload            (payload <= MAX_FRAME)
 *
 * Host to agent
 *   EXEC       u32 flags | u32 window | u16 argc | u16 envc | user\0 cwd\0 argv\0... env\0...
 *   STDIN      bytes            the host keeps at most STDIN_WINDOW bytes unconfirmed
 *   STDIN_EOF  -
 *   SIGNAL     i32 signal | u8 tree     job 0 with tree: everything but the agent
 *   CREDIT     u32 bytes        the host has consumed that much output of the job (frames cost FRAME_COST extra)
 * Agent to host
 *   HELLO      u32 version
 *   STARTED    u32 pid
 *   OUT, ERR   bytes
 *   CREDIT     u32 bytes        that much standard input has been taken
 *   EXIT       i32 wait status | i64 user us | i64 system us | i64 max rss KiB        always the last frame of a job
 *   FAILED     i32 errno | u8 stage                                                   instead of STARTED ... EXIT
 */
#ifndef SHEM_WIRE_H
#define SHEM_WIRE_H

enum { EXEC = 1, STDIN, STDIN_EOF, SIGNAL, CREDIT, HELLO = 128, STARTED, OUT, ERR, EXIT, FAILED };
enum { FLAG_STDIN = 1, FLAG_BUILTIN = 2 };
enum { STAGE_REQUEST = 1, STAGE_FORK, STAGE_USER, STAGE_CWD, STAGE_EXEC };

#define VERSION 1
#define MAX_FRAME (1 << 20)
#define HEADER 9
#define STDIN_WINDOW (256 << 10)
#define FRAME_COST 64

#endif
