function _registry_gc_completion;
    set -l response (env _REGISTRY_GC_COMPLETE=fish_complete COMP_WORDS=(commandline -cp) COMP_CWORD=(commandline -t) registry-gc);

    set -l option (string match -r -- '^--[^=]+=' (commandline -t));

    for completion in $response;
        set -l metadata (string split "," $completion);

        if test $metadata[1] = "dir";
            for found in (__fish_complete_directories $metadata[2]);
                echo "$option$found";
            end;
        else if test $metadata[1] = "file";
            for found in (__fish_complete_path $metadata[2]);
                echo "$option$found";
            end;
        else if test $metadata[1] = "plain";
            echo "$option"$metadata[2];
        end;
    end;
end;

complete --no-files --command registry-gc --arguments "(_registry_gc_completion)";

