add_library(limiter SHARED limiter/entry.c limiter/lookup.c limiter/real.c limiter/region.c limiter/ledger.c limiter/lock.c
            limiter/memory.c limiter/oversold.c limiter/pools.c limiter/sharing.c limiter/graphs.c limiter/launch.c limiter/pace.c limiter/cost.c
            limiter/sampler.c limiter/views.c limiter/attest.c shared/table.c shared/process.c shared/lock.c)
set_target_properties(limiter PROPERTIES OUTPUT_NAME tensorfusion_limiter)
target_link_options(limiter PRIVATE -Wl,--version-script=${CMAKE_SOURCE_DIR}/limiter/limiter.map -Wl,-Bsymbolic)
target_link_libraries(limiter PRIVATE Threads::Threads ${CMAKE_DL_LIBS})
