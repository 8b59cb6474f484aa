add_executable(tf-load programs/tf_load.c)
target_link_libraries(tf-load PRIVATE Threads::Threads ${CMAKE_DL_LIBS})

add_executable(tf-hook-cost programs/tf_hook_cost.c)
target_link_libraries(tf-hook-cost PRIVATE ${CMAKE_DL_LIBS})

add_library(nullcuda SHARED nulldriver/defaults.c nulldriver/answers.c)
set_target_properties(nullcuda PROPERTIES OUTPUT_NAME cuda SOVERSION 1
                      LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/null)
# -Bsymbolic: it hands out its own functions, not those of a preloaded library.
target_link_options(nullcuda PRIVATE -Wl,--version-script=${CMAKE_SOURCE_DIR}/nulldriver/null.map -Wl,-Bsymbolic)

add_executable(tf-exercise programs/tf_exercise.c)
target_link_libraries(tf-exercise PRIVATE Threads::Threads ${CMAKE_DL_LIBS})

add_executable(tf-memory-mix programs/tf_memory_mix.c)
target_link_libraries(tf-memory-mix PRIVATE Threads::Threads ${CMAKE_DL_LIBS} m)
