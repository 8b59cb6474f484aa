add_executable(tf-load programs/tf_load.c)
target_link_libraries(tf-load PRIVATE ${CMAKE_DL_LIBS})
