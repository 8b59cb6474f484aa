# It includes region.c; entry.c would stand in the way of the sanitizers' start.
add_executable(fuzz-region fuzz/fuzz_region.c limiter/real.c limiter/ledger.c limiter/lock.c limiter/memory.c limiter/oversold.c
               limiter/pools.c limiter/sharing.c limiter/graphs.c limiter/pace.c limiter/cost.c limiter/sampler.c limiter/attest.c
               shared/table.c shared/process.c shared/lock.c)
target_link_libraries(fuzz-region PRIVATE Threads::Threads ${CMAKE_DL_LIBS})
